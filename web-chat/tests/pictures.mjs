// Takes the screenshots of the documents: `node web-chat/tests/pictures.mjs FOLDER`, with the MLC folder of the demo model.
// `cargo xtask pictures` calls it. It writes `docs/figures/page-*.webp`: wide, dark, and on a phone.

import { writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ask, choose, launch, loaded, openPage, show, until } from './browser.mjs';
import { serve } from './server.mjs';

const FIGURES = fileURLToPath(new URL('../../docs/figures/', import.meta.url));
const DIST = fileURLToPath(new URL('../dist/', import.meta.url));
/** Largest size of a picture, in bytes, and quality of its compression (1: lossless). */
const LIMIT = 120_000;
const QUALITY = 0.9;
/** Port of the server, which the pictures show in the model's address. */
const PORT = 8000;
/** Time limit of an answer, in milliseconds: a software GPU decodes a few tokens per second. */
const PATIENCE = 600_000;
const SETTINGS = { temperature: 0, max_tokens: 160 };
const QUESTIONS = ['What is the capital of France?', 'Write a Python function that adds two numbers.'];
const PICTURES = [
  { name: 'page-wide', panel: 'models', colorScheme: 'light', viewport: { width: 1200, height: 900 } },
  { name: 'page-dark', panel: 'settings', colorScheme: 'dark', viewport: { width: 1200, height: 900 } },
  { name: 'page-phone', panel: 'chat', colorScheme: 'light', viewport: { width: 390, height: 780 } },
];

/** Converts a PNG to WebP in an empty page of the browser. */
async function webp(page, png) {
  const text = await page.evaluate(async ([data, quality]) => {
    const image = new Image();
    image.src = `data:image/png;base64,${data}`;
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL('image/webp', quality).split(',')[1];
  }, [png.toString('base64'), QUALITY]);
  return Buffer.from(text, 'base64');
}

const folder = resolve(process.argv[2]);
const server = await serve({ '/': DIST, '/models/': `${dirname(folder)}/` }, PORT);
const browser = await launch();
browser.context.setDefaultTimeout(PATIENCE);
try {
  await browser.context.addInitScript((text) => localStorage.setItem('settings', text), JSON.stringify(SETTINGS));
  const page = await openPage(browser.context, server);
  await choose(page, server, basename(folder));
  await loaded(page);
  for (const question of QUESTIONS) await ask(page, question);
  // The speed of a software GPU would mislead.
  await page.evaluate(() => document.querySelectorAll('.stats').forEach((line) => line.remove()));
  const converter = await browser.context.newPage();
  for (const { name, panel, colorScheme, viewport } of PICTURES) {
    await page.setViewportSize(viewport);
    await page.emulateMedia({ colorScheme });
    await show(page, panel);
    await page.evaluate(() => {
      document.activeElement.blur();
      document.querySelectorAll('#messages, .side').forEach((box) => { box.scrollTop = 0; });
    });
    // Two frames: the first may still have the old layout.
    await until(page, () => new Promise((done) => { requestAnimationFrame(() => requestAnimationFrame(() => done(true))); }));
    const picture = await webp(converter, await page.screenshot());
    const path = join(FIGURES, `${name}.webp`);
    if (picture.length > LIMIT) throw new Error(`${path} needs ${picture.length} bytes, more than ${LIMIT}`);
    await writeFile(path, picture);
    console.log(`${path}: ${picture.length} bytes`);
  }
} finally {
  await browser.close();
  server.close();
}
