// What every page must hold, in Chromium: node tests/browser/standalone.mjs FOLDER FOR SCREENSHOTS PAGE.html ...
// For pages without a script of their own here: those of `lemniscate report` and `lemniscate compare`.
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { broken, check, fits, launch } from './browser.mjs';

const [pictures, ...files] = process.argv.slice(2);
if (!files.length) throw new Error('usage: node standalone.mjs FOLDER PAGE.html ...');
const browser = await launch();

try {
  for (const file of files) {
    const name = path.basename(file, '.html');
    const url = pathToFileURL(path.resolve(file)).href;
    for (const [how, options] of Object.entries({ light: {}, dark: { dark: true }, phone: { width: 360, height: 740 } })) {
      const page = await browser.page(options);
      await page.goto(url);
      check((await page.title()).length > 0, `${name}, ${how}: it has a title`);
      const headings = await page.evaluate(() =>
        [...document.querySelectorAll('h1,h2,h3,h4')].map((heading) => Number(heading.tagName[1])));
      check(headings[0] === 1 && headings.every((level, i) => i === 0 || level <= headings[i - 1] + 1), 'headings skip no level');
      check(await page.evaluate(() => [...document.images].every((image) => image.alt)), 'every picture has a text');
      check((await broken(page)).length === 0, 'pictures in view are there');
      check(await fits(page), 'no horizontal scroll');
      check(page.refused.length === 0, 'no request to a network');
      check(page.problems.length === 0, `no errors (${page.problems.join('; ')})`);
      await page.screenshot({ path: path.join(pictures, `${name}-${how}.png`), fullPage: true });
    }
  }
} finally {
  await browser.close();
}
