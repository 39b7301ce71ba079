// A headless Chromium for the tests beside this file, and what they check with.
import { createRequire } from 'node:module';

const { CHROMIUM = '/usr/bin/chromium', PLAYWRIGHT_CORE = 'playwright-core' } = process.env;

/** Starts Chromium; `page(options)` gives a page on which every request to a network is refused and remembered. */
export async function launch() {
  const { chromium } = createRequire(import.meta.url)(PLAYWRIGHT_CORE);
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    headless: true,
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync',
    ],
  });
  /** `allowed`: a prefix of URLs beside file: and data: that the page may load. */
  const page = async ({ width = 1280, height = 900, dark = false, javaScript = true, allowed = null } = {}) => {
    const context = await browser.newContext({
      viewport: { width, height }, colorScheme: dark ? 'dark' : 'light', javaScriptEnabled: javaScript,
    });
    const page = await context.newPage();
    page.refused = [];
    page.problems = [];
    page.on('pageerror', (error) => page.problems.push(String(error)));
    page.on('console', (message) => message.type() === 'error' && page.problems.push(message.text()));
    await page.route('**/*', (route) => {
      const url = route.request().url();
      if (/^(file|data|blob|about):/.test(url) || (allowed && url.startsWith(allowed))) return route.continue();
      page.refused.push(url);
      return route.abort();
    });
    return page;
  };
  return { page, close: () => browser.close() };
}

/** Fails, saying what was expected. */
export function check(holds, what) {
  if (!holds) throw new Error(`failed: ${what}`);
  console.log(`ok: ${what}`);
}

/** Whether the page is no wider than its window. */
export const fits = (page) => page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);

/** Pictures that did not load, of those in view. */
export const broken = (page) => page.evaluate(() =>
  [...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src.slice(0, 80)));

/** Which visible row of pictures has the focus, and which picture in it; -1 where none has. */
export const focused = (page) => page.evaluate(() => {
  const row = document.activeElement.closest('.retrieval');
  const tiles = row ? [...row.querySelectorAll('.tile')] : [];
  const rows = [...document.querySelectorAll('.retrieval:not([hidden])')];
  return { row: rows.indexOf(row), tile: tiles.indexOf(document.activeElement) };
});
