// The page of `lemniscate neighbors` in Chromium: node tests/browser/neighbors.mjs PAGE.html [FOLDER FOR SCREENSHOTS]
// The page must have been made with labels, and so have successes and failures.
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { arrived, broken, check, fits, focused, launch, stopwatch } from './browser.mjs';

const [file, pictures] = process.argv.slice(2);
if (!file) throw new Error('usage: node neighbors.mjs PAGE.html [FOLDER FOR SCREENSHOTS]');
const url = pathToFileURL(path.resolve(file)).href;
const browser = await launch();
const shot = async (page, name) => {
  if (pictures) await page.screenshot({ path: path.join(pictures, `${name}.png`) });
};

try {
  const page = await browser.page();
  const { times, clock, measure } = await stopwatch(page);
  await measure('open', () => page.goto(url, { timeout: 180_000 }));
  await arrived(page);
  const counts = await page.evaluate(() => ({
    rows: document.querySelectorAll('.retrieval').length,
    tiles: document.querySelectorAll('.tiles .tile').length,
    queries: document.querySelectorAll('.tile.query').length,
    unnamed: [...document.images].filter((image) => !image.alt).length,
    headings: [...document.querySelectorAll('h1,h2,h3,h4')].map((heading) => Number(heading.tagName[1])),
  }));
  console.log(`${counts.rows} rows, ${counts.tiles} tiles`);
  check(counts.rows > 1 && counts.queries === counts.rows, 'each row has its query');
  check(counts.tiles >= counts.rows, 'rows have tiles');
  check(counts.unnamed === 0, 'every picture has a text');
  check(counts.headings.every((level, i) => i === 0 || level <= counts.headings[i - 1] + 1), 'headings skip no level');
  check((await broken(page)).length === 0, 'pictures in view are there');
  check(await fits(page), '1280 px: no horizontal scroll');
  await shot(page, 'light');

  // By keyboard alone: to the filter, then through the rows.
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement.className === 'skip'), 'Tab: first the skip link');
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement.name === 'outcome'), 'Tab: then the filter');
  await measure('filter', () => page.keyboard.press('ArrowRight'));
  const successes = await page.evaluate(() => ({
    shown: [...document.querySelectorAll('.retrieval:not([hidden])')].map((row) => row.dataset.outcome),
    says: document.querySelector('#filter output').value,
  }));
  check(successes.shown.length > 0 && successes.shown.every((it) => it === 'success'), 'arrow key: successes alone');
  check(successes.says.startsWith(`${successes.shown.length} of ${counts.rows}`), 'the number left is said');
  await page.keyboard.press('ArrowRight');
  const failures = await page.evaluate(() =>
    [...document.querySelectorAll('.retrieval:not([hidden])')].map((row) => row.dataset.outcome));
  check(failures.length === counts.rows - successes.shown.length && failures.every((it) => it === 'failure'),
    'arrow key: failures alone');
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement.name === 'class'), 'Tab: the classes');
  await measure('class', () => page.selectOption('#filter select', { index: 1 }));
  const ofClass = await page.evaluate(() =>
    new Set([...document.querySelectorAll('.retrieval:not([hidden])')].map((row) => row.dataset.class)).size);
  check(ofClass === 1, 'one class alone');
  await measure('all', () => page.selectOption('#filter select', ''));
  await page.keyboard.press('Tab');
  check((await focused(page)).row === 0, 'Tab: the first row');
  await page.keyboard.press('ArrowDown');
  check((await focused(page)).row === 1, 'down: the next row');
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowRight');
  const tile = await focused(page);
  check(tile.row === 1 && tile.tile === 1, 'right: along the tiles');
  const status = await page.textContent('#status');
  check(/^1, .+: [✓✗] -?[\d.]+, ./.test(status), `the line at the foot names it: ${status}`);
  await page.keyboard.press('Escape');
  check((await focused(page)).tile === -1, 'Escape: the row');
  await measure('end', () => page.keyboard.press('End'));
  check((await focused(page)).row === counts.rows - 1, 'End: the last row');
  await page.waitForTimeout(300);
  await arrived(page);
  check((await broken(page)).length === 0, 'pictures there are there, too');
  await page.keyboard.press('Tab');
  check((await focused(page)).row === -1, 'Tab leaves the rows');
  // The wheel, a screen at a time from the top: how long the slowest took to be painted.
  await page.evaluate(() => window.scrollTo({ top: 0, behavior: 'instant' }));
  await page.mouse.move(640, 450);
  for (let i = 0; i < 20; i += 1) await measure('scroll', () => page.mouse.wheel(0, 800));
  console.log(`ms of the page's thread: ${JSON.stringify(times)}; of the clock: ${JSON.stringify(clock)}`);
  const slow = Object.entries(times).filter(([what, ms]) => ms > (what === 'open' ? 5_000 : 1_000));
  check(slow.length === 0, `nothing makes a person wait (${slow})`);
  check(page.refused.length === 0, 'no request to a network');
  check(page.problems.length === 0, `no errors (${page.problems.join('; ')})`);

  const dark = await browser.page({ dark: true });
  await dark.goto(url, { timeout: 180_000 });
  check(await dark.evaluate(() => getComputedStyle(document.body).backgroundColor) !== 'rgb(255, 255, 255)', 'dark is dark');
  await dark.evaluate(() => document.querySelector('#rows').scrollIntoView());
  await dark.waitForTimeout(300);
  await shot(dark, 'dark');

  const phone = await browser.page({ width: 360, height: 740 });
  await phone.goto(url, { timeout: 180_000 });
  check(await fits(phone), '360 px: no horizontal scroll');
  await phone.evaluate(() => document.querySelector('#rows').scrollIntoView());
  await phone.waitForTimeout(300);
  await shot(phone, 'phone');

  const plain = await browser.page({ javaScript: false });
  await plain.goto(url, { timeout: 180_000 });
  check(await plain.locator('.retrieval').first().isVisible(), 'without JavaScript: the rows are there');
  check(!(await plain.locator('#filter').isVisible()), 'without JavaScript: no filter that does nothing');
} finally {
  await browser.close();
}
