// The page in headless Chromium beside the Python package: same tokens, same sound, by mouse and by keyboard.
//
// CHROMIUM and PYTHON name the programs; SCREENSHOTS a folder for pictures of the page.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync, existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import puppeteer from 'puppeteer-core';
import { serve } from '../serve.js';
import { crc32, unpack } from '../src/afc.js';

const TIES = 0.01; // share of codes that float32 rounding may move over a border between two levels
const STAGES = [2, 4, 8];
const folder = mkdtempSync(path.join(tmpdir(), 'affectcodec-page-'));
const inFolder = (name) => path.join(folder, name);
let server, browser, page, requests;

before(async () => {
  const script = new URL('reference.py', import.meta.url).pathname;
  const root = new URL('../..', import.meta.url).pathname;
  execFileSync(process.env.PYTHON ?? 'python', [script, folder],
    { cwd: root, env: { ...process.env, PYTHONPATH: root }, stdio: ['ignore', 'ignore', 'inherit'] });
  writeFileSync(inFolder('text.wav'), 'not audio');
  const short = readFileSync(inFolder('speech.wav')).subarray(0, 44 + 200);
  writeFileSync(inFolder('short.wav'), short);
  const damaged = readFileSync(inFolder('2.afc'));
  damaged[100] ^= 1;
  writeFileSync(inFolder('damaged.afc'), damaged);
  const other = Buffer.from(readFileSync(inFolder('2.afc')));
  other[29] ^= 1;
  other.writeUInt32LE(crc32(other.subarray(0, 37), other.subarray(41)), 37);
  writeFileSync(inFolder('other.afc'), other);
  server = await serve();
  browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--use-fake-device-for-media-stream'],
  });
});

after(async () => {
  await browser?.close();
  server?.close();
  rmSync(folder, { recursive: true });
});

beforeEach(async () => {
  await page?.close();
  page = await browser.newPage();
  await page.bringToFront();
  requests = [];
  page.on('request', (request) => requests.push(request.url()));
  page.on('pageerror', (error) => assert.fail(`the page throws ${error}`));
  await page.setViewport({ width: 1200, height: 900 });
  await page.goto(server.url);
  await page.waitForSelector('#record:enabled');
  const session = await page.createCDPSession();
  await session.send('Browser.setDownloadBehavior', { behavior: 'allow', downloadPath: folder });
});

const text = (selector) => page.$eval(selector, (e) => e.textContent);
const idle = () => page.waitForSelector('body[data-state=idle]');

async function drop(name) {
  const bytes = readFileSync(inFolder(name)).toString('base64');
  await page.evaluate((base64, label) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], label));
    document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
  }, bytes, name);
  await idle();
}

async function fails(name, message) {
  await drop(name);
  assert.match(await text('#error'), message);
}

async function choose(stages) {
  await page.click(`[name=rate][value="${stages}"]`);
  await idle();
}

/** What a download link saves, through the browser's downloads. */
async function saved(id, press = () => page.click(id)) {
  const name = await page.$eval(id, (e) => e.download);
  rmSync(inFolder(name), { force: true });
  await press();
  for (let i = 0; i < 100 && !existsSync(inFolder(name)); i++) await sleep(50);
  return readFileSync(inFolder(name));
}

function sameTokens(ours, theirs) {
  assert.deepEqual(ours.subarray(0, 25), theirs.subarray(0, 25)); // all but gain, checksum and payload
  assert.deepEqual(ours.subarray(29, 37), theirs.subarray(29, 37));
  const [a, b] = [unpack(ours), unpack(theirs)];
  assert.ok(Math.abs(a.gainDb - b.gainDb) < 1e-5);
  const share = a.codes.filter((c, i) => c !== b.codes[i]).length / a.codes.length;
  assert.ok(share <= TIES, `${share} of the codes differ`);
  return share;
}

/** Largest difference between the samples of two 16-bit WAVs. */
function difference(ours, theirs) {
  assert.equal(ours.length, theirs.length);
  let most = 0;
  for (let at = 44; at < ours.length; at += 2) {
    most = Math.max(most, Math.abs(ours.readInt16LE(at) - theirs.readInt16LE(at)));
  }
  return most;
}

test('a dropped recording has the tokens of the package at every rate, and nothing leaves the machine', async (t) => {
  const start = performance.now();
  await drop('speech.wav');
  const wall = ((performance.now() - start) / 1000).toFixed(2);
  t.diagnostic(`first, with pictures ${wall} s: ${await text('#status')}`);
  await drop('speech.wav');
  t.diagnostic(`second: ${await text('#status')}`);
  for (const stages of STAGES) {
    await choose(stages);
    const share = sameTokens(await saved('#save-afc'), readFileSync(inFolder(`${stages}.afc`)));
    t.diagnostic(`${stages} stages: ${(100 * share).toFixed(2)} % of the codes differ`);
  }
  for (const id of ['before', 'after']) {
    const audio = await page.$eval(`#${id}-audio`, async (e) => {
      e.muted = true;
      await e.play();
      return { duration: e.duration, error: e.error };
    });
    assert.equal(audio.error, null);
    assert.ok(Math.abs(audio.duration - 5) < 0.02);
  }
  for (const url of requests) assert.ok(url.startsWith(server.url) || /^(blob|data):/.test(url), url);
});

test('other rates, channels and formats go through the decoder of the browser', async () => {
  await drop('stereo.flac');
  assert.equal(await text('#error'), '');
  const [ours, theirs] = [unpack(await saved('#save-afc')), unpack(readFileSync(inFolder('2.afc')))];
  assert.ok(Math.abs(ours.samples - theirs.samples) <= 2);
  assert.ok(Math.abs(ours.gainDb - theirs.gainDb - 20 * Math.log10(4 / 3)) < 0.2); // the mean of 1 and 1/2
});

test('a token file of the package decodes to its sound', async (t) => {
  const differences = [];
  for (const stages of [1, ...STAGES]) { // one stage is a rate that the page does not offer
    await drop(`${stages}.afc`);
    assert.equal(await text('#error'), '');
    assert.deepEqual(await saved('#save-afc'), readFileSync(inFolder(`${stages}.afc`))); // read and written again
    differences.push(difference(await saved('#save-wav'), readFileSync(inFolder(`${stages}.wav`))));
    if (stages === 1) await drop('speech.wav');
    assert.equal(await text('#error'), '');
  }
  t.diagnostic(`samples differ by at most ${differences} of 32768`);
  // A frame whose pitch lies on a rounding tie may fall on its other side, a 1024th of an octave away, and the
  // pulses after it have another phase: of one of the four, and 30 dB below full scale.
  assert.ok(differences.filter((d) => d > 4).length <= 1 && Math.max(...differences) <= 1024, differences.join());
});

test('mistakes get one clear line, and what was there stays', async () => {
  await drop('2.afc');
  await fails('text.wav', /not a recording/);
  await fails('short.wav', /too short/);
  await fails('damaged.afc', /damaged/);
  await fails('other.afc', /made by model/);
  await fails('long.afc', /more than 120 s/);
  assert.equal((await saved('#save-afc')).length, readFileSync(inFolder('2.afc')).length);
  await page.click('#record'); // headless Chromium asks nobody and refuses
  await idle();
  assert.match(await text('#error'), /microphone/);
});

test('a WAV whose header was never finished is read to its end', async () => {
  const wav = readFileSync(inFolder('speech.wav'));
  const samples = (wav.length - 44) / 2;
  wav.writeUInt32LE(0, 40); // of a recorder that was killed
  writeFileSync(inFolder('unfinished.wav'), wav);
  await drop('unfinished.wav');
  assert.equal(await text('#error'), '');
  assert.equal(unpack(await saved('#save-afc')).samples, samples);
});

test('a recording from the microphone', async () => {
  const context = browser.defaultBrowserContext();
  await context.overridePermissions(server.url, ['microphone']);
  await page.click('#record');
  await page.waitForSelector('#record[aria-pressed=true]');
  await sleep(1200);
  await page.click('#record');
  await idle();
  assert.equal(await text('#error'), '');
  const tokens = unpack(await saved('#save-afc'));
  assert.ok(tokens.samples > 12000 && tokens.samples < 48000);
  await context.clearPermissionOverrides();
});

test('everything by keyboard', async () => {
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.name
    || document.activeElement.className);
  const tabTo = async (wanted) => {
    for (let i = 0; i < 20 && (await focused()) !== wanted; i++) await page.keyboard.press('Tab');
    assert.equal(await focused(), wanted);
  };
  await tabTo('choose');
  const chooser = page.waitForFileChooser();
  await sleep(300); // until the browser hands its dialogs over
  await page.keyboard.press('Enter');
  await (await chooser).accept([inFolder('speech.wav')]);
  await page.waitForSelector('#result:not([hidden])');
  await idle();
  await tabTo('rate');
  await page.keyboard.press('ArrowRight');
  await idle();
  await tabTo('scroll'); // the tokens
  await tabTo('save-afc');
  const tokens = unpack(await saved('#save-afc', () => page.keyboard.press('Enter')));
  assert.equal(tokens.stages, 4);
});

test('fits a phone, light and dark', async () => {
  await drop('speech.wav');
  for (const [width, height] of [[390, 844], [1200, 900]]) {
    await page.setViewport({ width, height });
    for (const scheme of ['light', 'dark']) {
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      await sleep(200);
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `overflow at ${width}`);
      if (process.env.SCREENSHOTS) {
        await page.screenshot({ path: path.join(process.env.SCREENSHOTS, `${width}-${scheme}.png`), fullPage: true });
      }
    }
  }
});
