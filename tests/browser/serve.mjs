// The page of `lemniscate serve` in Chromium: node tests/browser/serve.mjs http://127.0.0.1:PORT [FOLDER FOR SCREENSHOTS]
// The server must be running, with a run folder and labelled images.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { broken, check, fits, launch } from './browser.mjs';

const [url, pictures] = process.argv.slice(2);
if (!url) throw new Error('usage: node serve.mjs http://127.0.0.1:PORT [FOLDER FOR SCREENSHOTS]');
const browser = await launch();
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'serve-'));
const shot = async (page, name, options = {}) => {
  if (pictures) await page.screenshot({ path: path.join(pictures, `serve-${name}.png`), ...options });
};
const status = (page) => page.textContent('#status');
/** Waits until an answer other than `before` is shown. */
const answered = async (page, before) => {
  await page.waitForFunction((old) => {
    const text = document.getElementById('query').textContent;
    return text !== old && !document.getElementById('found').hasAttribute('aria-busy');
  }, before);
  await page.waitForFunction(() => document.getElementById('status').textContent.includes('nearest of'));
  await page.waitForFunction(() => [...document.querySelectorAll('#found img')].slice(0, 8).every((image) => image.complete));
};
const query = (page) => page.textContent('#query');
const open = async (options) => {
  const page = await browser.page({ allowed: url, ...options });
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById('map-note').textContent.includes('variance'));
  return page;
};

try {
  const page = await open();
  check((await page.title()).length > 0, 'the page has a title');
  check(await page.isHidden('#found'), 'nothing is found yet');

  await page.click('[data-random="train"]');
  await answered(page, '');
  check((await page.locator('#results .tile').count()) === 20, 'a random image finds 20');
  check(/ of 20 are of the same class/.test(await status(page)), `the answer is said: ${await status(page)}`);
  // Places for pictures that nothing was pointed at yet have no source.
  const lost = (await broken(page)).filter(Boolean);
  check(lost.length === 0, `all pictures are there (${lost})`);
  const first = await query(page);

  await page.click('#results .tile:nth-child(2) button');
  await answered(page, first);
  const second = await query(page);
  check(second !== first, 'clicking a result searches with it');
  await page.goBack();
  await answered(page, second);
  check((await query(page)) === first, 'going back shows the search before');

  await page.selectOption('#k', '50');
  await page.waitForFunction(() => document.querySelectorAll('#results .tile').length === 50);
  await page.selectOption('#k', '20');
  await page.waitForFunction(() => document.querySelectorAll('#results .tile').length === 20);
  check(true, 'the number of neighbours can be changed');

  // An image of the data set, as if it came from elsewhere.
  const image = path.join(scratch, 'image.jpg');
  fs.writeFileSync(image, Buffer.from(await (await fetch(`${url}/api/images/train/3/thumbnail?side=512`)).arrayBuffer()));
  await page.setInputFiles('#file', image);
  await answered(page, first);
  check((await query(page)).startsWith('Your image'), 'an upload is searched with');
  check((await page.getAttribute('#query img', 'src')).startsWith('data:image/jpeg'), 'and shown');
  check((await page.locator('#results .tile.same, #results .tile.other').count()) === 0, 'its class is not guessed at');

  // Dropped, as a file manager would.
  const transfer = await page.evaluateHandle(async (bytes) => {
    const made = new DataTransfer();
    made.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg', { type: 'image/jpeg' }));
    return made;
  }, [...fs.readFileSync(image)]);
  await page.evaluate(() => { document.getElementById('query').querySelector('figcaption').textContent = ''; });
  await page.dispatchEvent('body', 'drop', { dataTransfer: transfer });
  await answered(page, '');
  check((await query(page)).startsWith('Your image'), 'a dropped image is searched with');

  check(page.problems.length === 0, `no errors so far (${page.problems})`);
  const bad = path.join(scratch, 'broken.jpg');
  fs.writeFileSync(bad, fs.readFileSync(image).subarray(0, 900));
  await page.setInputFiles('#file', bad);
  await page.waitForSelector('#error:not([hidden])');
  check(/the uploaded image: /.test(await page.textContent('#error')), `a broken upload: ${await page.textContent('#error')}`);
  await shot(page, 'broken');
  const huge = path.join(scratch, 'huge.jpg');
  fs.writeFileSync(huge, Buffer.alloc(33 * 1024 * 1024));
  await page.setInputFiles('#file', huge);
  await page.waitForFunction(() => /MiB/.test(document.getElementById('error').textContent));
  check(true, 'too large an upload is refused before it is sent');
  page.problems.length = 0;
  await page.click('[data-random="train"]');
  await answered(page, await query(page));
  check(await page.isHidden('#error'), 'the next search clears the error');

  // The map, by pointer and by keyboard.
  await page.locator('#map').scrollIntoViewIfNeeded();
  const box = await page.locator('#map').boundingBox();
  const at = await page.evaluate(() => map.place(0));
  await page.mouse.move(box.x + at[0] + 1, box.y + at[1] + 1);
  await page.waitForFunction(() => !document.getElementById('tip').hidden
    && document.querySelector('#tip img').complete && document.querySelector('#tip span').textContent.includes('/'));
  check(true, 'hovering over a point shows its image');
  await shot(page, 'map');
  const zoom = await page.evaluate(() => map.zoom);
  await page.mouse.wheel(0, -300);
  await page.waitForFunction((before) => map.zoom > before, zoom);
  check(true, 'the wheel zooms');
  await page.mouse.down();
  await page.mouse.move(box.x + at[0] + 80, box.y + at[1] + 40, { steps: 4 });
  await page.mouse.up();
  check(await page.evaluate(() => map.centre[0] !== 0 && location.hash !== ''), 'dragging moves');
  await page.focus('#map');
  await page.keyboard.press('0');
  for (const key of ['ArrowRight', 'ArrowUp', 'ArrowLeft']) await page.keyboard.press(key);
  await page.waitForFunction(() => document.getElementById('map-status').textContent.length > 0);
  check(true, `arrow keys say where they are: ${await page.textContent('#map-status')}`);
  const earlier = await query(page);
  await page.keyboard.press('Enter');
  await answered(page, earlier);
  check(true, 'Enter searches with it');
  if (await page.locator('#legend button').count()) {
    await page.click('#legend button');
    check(await page.evaluate(() => map.only !== null), 'a class can be seen alone');
    await page.click('#legend button');
  }

  // By keyboard alone, from the top.
  await page.reload();
  await page.waitForFunction(() => document.getElementById('map-note').textContent.includes('variance'));
  const seen = [];
  for (let i = 0; i < 12; i += 1) {
    await page.keyboard.press('Tab');
    seen.push(await page.evaluate(() => {
      const it = document.activeElement;
      return it.id || it.dataset.random || it.className || it.closest('.tile') && 'result' || it.tagName;
    }));
  }
  check(seen[0] === 'skip' && seen.includes('file') && seen.includes('train') && seen.includes('k'),
    `Tab reaches ${seen.join(', ')}`);
  check(seen.includes('result'), 'and the results');
  check(await page.evaluate(() => [...document.querySelectorAll('button')].every((it) => it.textContent.trim() || it.getAttribute('aria-label'))),
    'every button has a name');

  await page.waitForFunction(() => document.getElementById('curves').naturalWidth > 0);
  check(/loss/.test(await page.textContent('#curves-note')), 'the curves are there');
  check(await fits(page), '1280 px: no horizontal scroll');
  await page.evaluate(() => window.scrollTo(0, 0));
  await shot(page, 'light', { fullPage: true });
  await shot(page, 'top');

  const dark = await open({ dark: true });
  await dark.goto(`${url}/#train/3`);
  await dark.reload();
  await answered(dark, '');
  await dark.waitForFunction(() => document.getElementById('map-note').textContent.includes('variance'));
  await shot(dark, 'dark', { fullPage: true });

  const narrow = await open({ width: 360, height: 740 });
  await narrow.click('[data-random="train"]');
  await answered(narrow, '');
  check(await fits(narrow), '360 px: no horizontal scroll');
  check(await narrow.evaluate(() => [...document.querySelectorAll('.scroll')].every((it) => it.scrollWidth <= it.clientWidth)),
    '360 px: all of every table is in sight');
  await shot(narrow, 'narrow', { fullPage: true });

  const plain = await browser.page({ allowed: url, javaScript: false });
  await plain.goto(url);
  check((await plain.textContent('body')).includes('need JavaScript'), 'without scripts the page says so');

  for (const it of [page, dark, narrow]) {
    check(it.refused.length === 0, `no request elsewhere (${it.refused})`);
    check(it.problems.length === 0, `no errors (${it.problems})`);
  }
} finally {
  await browser.close();
  fs.rmSync(scratch, { recursive: true, force: true });
}
