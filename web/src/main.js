// The page: what a click does, and what is shown.

import { isTokenFile, pack, prefix, unpack } from './afc.js';
import { MAX_SECONDS, readAudio, SAMPLE_RATE, writeWav } from './audio.js';
import { decode, encode, load } from './codec.js';
import { drawSpectrogram, drawTokens } from './draw.js';
import { UserError } from './errors.js';
import { startRecording } from './record.js';

const $ = (id) => document.getElementById(id);
const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;

let card; // what export.json says
let shown = null; // {name, audio (null for a token file), tokens (of all stages there are), after, kept}
let stopRecording = null;
let busy = Promise.resolve();

const say = (text) => { $('status').textContent = text; };

/** Runs one thing after the other; a mistake is one line on the page. */
function run(work) {
  busy = busy.then(async () => {
    $('error').hidden = true;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof UserError)) console.error(error);
      $('error').textContent = error instanceof UserError ? error.message : `This did not work: ${error.message}`;
      $('error').hidden = false;
      say('');
    }
    document.body.dataset.state = 'idle';
  });
  document.body.dataset.state = 'busy';
  return busy;
}

async function open(bytes, name) {
  if (isTokenFile(bytes)) {
    const tokens = unpack(bytes);
    if (tokens.samples > MAX_SECONDS * SAMPLE_RATE) {
      throw new UserError(`These tokens are of more than ${MAX_SECONDS} s; use python -m affectcodec_jax decode.`);
    }
    say('Decoding …');
    await show({ name, audio: null, tokens }, Math.min(tokens.stages, card.stages));
    return;
  }
  const audio = await readAudio(bytes);
  say('Encoding …');
  const start = performance.now();
  const tokens = await encode(card, audio);
  await show({ name, audio, tokens, encodeTime: performance.now() - start }, chosenStages());
}

// A token file may have a rate that is none of these.
const chosenStages = () => Number(document.querySelector('[name=rate]:checked')?.value ?? card.rates[0].stages);

/** Decodes what is there at so many stages and shows it. */
async function show(next, stages) {
  const start = performance.now();
  const kept = { ...next.tokens, codes: prefix(next.tokens.codes, next.tokens.stages, stages), stages };
  const after = await decode(card, kept);
  shown = { ...next, kept, after, decodeTime: performance.now() - start };
  for (const input of document.querySelectorAll('[name=rate]')) {
    input.disabled = Number(input.value) > next.tokens.stages; // a token file may have fewer
    input.checked = Number(input.value) === stages;
  }
  $('before').hidden = !shown.audio;
  document.querySelector('.pair').classList.toggle('single', !shown.audio);
  $('result').hidden = false;
  const stem = shown.name.replace(/\.[^.]*$/, '');
  const afc = pack(kept);
  const wav = writeWav(after);
  if (shown.audio) $('before-audio').src = url('before', writeWav(shown.audio), 'audio/wav');
  $('after-audio').src = url('after', wav, 'audio/wav');
  link('save-afc', afc, `${stem}.afc`, 'application/octet-stream');
  link('save-wav', wav, `${stem}-decoded.wav`, 'audio/wav');
  draw();
  facts(afc.length);
  const encoded = shown.encodeTime ? `encoded in ${seconds(shown.encodeTime)}, ` : '';
  say(`${shown.name}: ${(kept.samples / SAMPLE_RATE).toFixed(2)} s at ${kbps(stages)} kbit/s, ${encoded}`
    + `decoded in ${seconds(shown.decodeTime)}.`);
}

const kbps = (stages) => (stages * card.bits_per_code * card.sample_rate) / card.hop_length / 1000;

function facts(bytes) {
  const { kept } = shown;
  const pcm = 44 + 2 * kept.samples;
  const entries = {
    Length: `${(kept.samples / SAMPLE_RATE).toFixed(2)} s`,
    Rate: `${kbps(kept.stages)} kbit/s`,
    'Token file': `${bytes.toLocaleString('en')} bytes`,
    '16-bit WAV': `${pcm.toLocaleString('en')} bytes, ${Math.round(pcm / bytes)} times as large`,
    Level: `${kept.gainDb >= 0 ? '+' : '−'}${Math.abs(kept.gainDb).toFixed(2)} dB applied`,
    Model: kept.fingerprint,
  };
  $('facts').replaceChildren(...Object.entries(entries).map(([name, value]) => {
    const [row, term, text] = ['div', 'dt', 'dd'].map((tag) => document.createElement(tag));
    [term.textContent, text.textContent] = [name, value];
    row.append(term, text);
    return row;
  }));
}

function draw() {
  if (!shown) return;
  const peak = shown.audio ? drawSpectrogram($('before-picture'), shown.audio) : undefined;
  drawSpectrogram($('after-picture'), shown.after, peak);
  const emotionBits = Math.log2(card.emotion_levels.reduce((a, b) => a * b));
  drawTokens($('tokens'), shown.kept, emotionBits, $('tokens').parentElement.clientWidth);
}

const urls = {};
function url(key, bytes, type) {
  if (urls[key]) URL.revokeObjectURL(urls[key]);
  urls[key] = URL.createObjectURL(new Blob([bytes], { type }));
  return urls[key];
}

function link(id, bytes, name, type) {
  $(id).href = url(id, bytes, type);
  $(id).download = name;
}

const openFile = (file) => run(async () => open(new Uint8Array(await file.arrayBuffer()), file.name));

/** Starts, or stops at once: what is being computed may take longer than a recording may be. */
function toggleRecording() {
  if (!stopRecording) {
    run(async () => {
      if (stopRecording) return; // clicked twice
      stopRecording = await startRecording();
      setRecording(true);
      say('Recording … press Stop when you are done.');
    });
    return;
  }
  const recording = stopRecording();
  stopRecording = null;
  setRecording(false);
  run(async () => open(await recording, 'recording.wav'));
}

function setRecording(on) {
  $('record').textContent = on ? 'Stop' : 'Record';
  $('record').setAttribute('aria-pressed', on);
  $('choose').disabled = on;
  clearTimeout(setRecording.limit);
  if (on) setRecording.limit = setTimeout(() => $('record').click(), (MAX_SECONDS - 1) * 1000);
}

$('record').onclick = toggleRecording;
$('choose').onclick = () => $('file').click();
$('file').onchange = ({ target }) => {
  const [file] = target.files;
  target.value = ''; // the same file may be chosen again
  if (file) openFile(file);
};
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add('dragging');
};
document.ondragleave = ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove('dragging');
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  const [file] = event.dataTransfer.files;
  if (file && card && !stopRecording) openFile(file);
};
$('rates').onchange = () => run(async () => {
  if (shown) await show(shown, chosenStages());
});
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);

run(async () => {
  card = await load();
  for (const { kbps: rate, stages } of card.rates) {
    const [label, input] = [document.createElement('label'), document.createElement('input')];
    Object.assign(input, { type: 'radio', name: 'rate', value: stages, checked: stages === card.rates[0].stages });
    label.append(input, `${rate}`);
    $('rates').append(label);
  }
  $('record').disabled = $('choose').disabled = false;
  say('Ready.');
});
