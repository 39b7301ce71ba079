// The page of `lemniscate cluster` in Chromium: node tests/browser/clusters.mjs PAGE.html [FOLDER FOR SCREENSHOTS]
// The page must have near-duplicates, too.
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { broken, check, fits, focused, launch } from './browser.mjs';

const [file, pictures] = process.argv.slice(2);
if (!file) throw new Error('usage: node clusters.mjs PAGE.html [FOLDER FOR SCREENSHOTS]');
const url = pathToFileURL(path.resolve(file)).href;
const browser = await launch();
const shot = async (page, name) => {
  if (pictures) await page.screenshot({ path: path.join(pictures, `clusters-${name}.png`) });
};

try {
  const page = await browser.page();
  await page.goto(url);
  const counts = await page.evaluate(() => ({
    clusters: document.querySelectorAll('article.retrieval').length,
    pairs: document.querySelectorAll('.pairs > .retrieval').length,
    whole: [...document.querySelectorAll('.pairs > .retrieval')].every((pair) => pair.querySelectorAll('.tile').length === 2),
    unnamed: [...document.images].filter((image) => !image.alt).length,
    medoids: [...document.images].filter((image) => image.alt.endsWith('(medoid)')).length,
  }));
  console.log(`${counts.clusters} clusters, ${counts.pairs} pairs`);
  check(counts.clusters > 1 && counts.medoids === counts.clusters, 'each cluster begins with its medoid');
  check(counts.pairs > 0 && counts.whole, 'pairs are of two');
  check(counts.unnamed === 0, 'every picture has a text');
  check((await broken(page)).length === 0, 'pictures in view are there');
  check(await fits(page), '1280 px: no horizontal scroll');
  await shot(page, 'light');

  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  check((await focused(page)).row === 0, 'Tab: past the skip link to the first row');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowRight');
  const at = await focused(page);
  check(at.row === 1 && at.tile === 0, 'down and right: a picture of the next row');
  const status = await page.textContent('#status');
  check(/\(medoid\): /.test(status), `the line at the foot names it: ${status}`);
  await page.keyboard.press('End');
  check((await focused(page)).row === counts.clusters + counts.pairs - 1, 'End: the last pair');
  await page.keyboard.press('Tab');
  check((await focused(page)).row === -1, 'Tab leaves the rows');
  check(page.refused.length === 0, 'no request to a network');
  check(page.problems.length === 0, `no errors (${page.problems.join('; ')})`);

  const dark = await browser.page({ dark: true });
  await dark.goto(url);
  check(await dark.evaluate(() => getComputedStyle(document.body).backgroundColor) !== 'rgb(255, 255, 255)', 'dark is dark');
  await dark.evaluate(() => document.querySelector('.pairs').scrollIntoView());
  await dark.waitForTimeout(300);
  await shot(dark, 'dark');

  const phone = await browser.page({ width: 360, height: 740 });
  await phone.goto(url);
  check(await fits(phone), '360 px: no horizontal scroll');
  await shot(phone, 'phone');
} finally {
  await browser.close();
}
