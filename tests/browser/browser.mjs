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
      viewport: { width, height }, reducedMotion: 'reduce', colorScheme: dark ? 'dark' : 'light', javaScriptEnabled: javaScript,
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

/** A stopwatch: `times[what]` is how many milliseconds the page's own thread computed from `action` to its painting (other
 * work on the machine does not count), and `clock[what]` those of the clock. */
export async function stopwatch(page) {
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable', { timeDomain: 'threadTicks' });
  const computed = async () => {
    const { metrics } = await session.send('Performance.getMetrics');
    return 1000 * metrics.find((metric) => metric.name === 'TaskDuration').value;
  };
  const [times, clock] = [{}, {}];
  const measure = async (what, action) => {
    const [before, started] = [await computed(), Date.now()];
    await action();
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const [after, ended] = [await computed(), Date.now()];
    times[what] = Math.max(times[what] ?? 0, Math.round(after - before));
    clock[what] = Math.max(clock[what] ?? 0, ended - started);
  };
  return { times, clock, measure };
}

/** Waits until the pictures of the rows in view are there. */
export const arrived = (page) => page.waitForFunction(() => [...document.querySelectorAll('.retrieval')].every((row) => {
  const { top, bottom, height } = row.getBoundingClientRect();
  if (!height || bottom < 0 || top > window.innerHeight) return true;
  return [...row.querySelectorAll('img')].every((image) => image.complete);
}), null, { polling: 100 });

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
