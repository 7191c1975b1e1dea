// The `.afc` token file, version 1: docs/afc-format.md describes every byte.

import { UserError } from './errors.js';

const HEADER_BYTES = 41;
const CRC_AT = 37;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** CRC-32 of zlib over several byte arrays, one after the other. */
export function crc32(...parts) {
  let crc = 0xffffffff;
  for (const bytes of parts) for (const b of bytes) crc = CRC_TABLE[(crc ^ b) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * Bytes of a token file.
 * @param {{codes: Int32Array, frames: number, stages: number, bits: number, hop: number, rate: number,
 *   samples: number, gainDb: number, fingerprint: string}} tokens  codes [frames, stages], row after row;
 *   the fingerprint is 16 hexadecimal digits.
 */
export function pack({ codes, frames, stages, bits, hop, rate, samples, gainDb, fingerprint }) {
  const bytes = new Uint8Array(HEADER_BYTES + Math.ceil((frames * stages * bits) / 8));
  const view = new DataView(bytes.buffer);
  bytes.set([0x41, 0x46, 0x43, 0x54, 1, stages, bits]); // AFCT, version
  view.setUint16(7, hop, true);
  view.setUint32(9, rate, true);
  view.setUint32(13, frames, true);
  view.setBigUint64(17, BigInt(samples), true);
  view.setFloat32(25, gainDb, true);
  for (let i = 0; i < 8; i++) bytes[29 + i] = parseInt(fingerprint.slice(2 * i, 2 * i + 2), 16);
  let at = 8 * HEADER_BYTES;
  for (let k = 0; k < stages; k++) { // stage by stage
    for (let t = 0; t < frames; t++) {
      const code = codes[t * stages + k];
      for (let bit = bits - 1; bit >= 0; bit--, at++) bytes[at >> 3] |= ((code >> bit) & 1) << (7 - (at & 7));
    }
  }
  view.setUint32(CRC_AT, crc32(bytes.subarray(0, CRC_AT), bytes.subarray(HEADER_BYTES)), true);
  return bytes;
}

/**
 * Inverse of `pack`.
 * @throws {UserError} not exactly one intact token file of version 1.
 */
export function unpack(bytes) {
  if (!isTokenFile(bytes)) throw new UserError('This is not an .afc token file.');
  if (bytes.length > 4 && bytes[4] !== 1) {
    throw new UserError(`This token file has format version ${bytes[4]}; this page reads version 1. Encode it again without --entropy.`);
  }
  if (bytes.length < HEADER_BYTES) throw new UserError('This token file is cut off; copy or encode it again.');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [stages, bits, hop, rate] = [bytes[5], bytes[6], view.getUint16(7, true), view.getUint32(9, true)];
  const [frames, samples] = [view.getUint32(13, true), Number(view.getBigUint64(17, true))];
  const gainDb = view.getFloat32(25, true);
  if (!(stages >= 1 && bits >= 1 && bits <= 16 && hop >= 1 && rate >= 1 && frames >= 1
      && frames === Math.ceil(samples / hop) && Math.abs(gainDb) <= 700)) {
    throw new UserError('The header of this token file is damaged; copy or encode it again.');
  }
  const expected = HEADER_BYTES + Math.ceil((frames * stages * bits) / 8);
  if (bytes.length !== expected) {
    throw new UserError(`This token file has ${bytes.length} bytes and should have ${expected}; copy it again.`);
  }
  const fill = 8 * (expected - HEADER_BYTES) - frames * stages * bits;
  if (view.getUint32(CRC_AT, true) !== crc32(bytes.subarray(0, CRC_AT), bytes.subarray(HEADER_BYTES))
      || bytes[expected - 1] & ((1 << fill) - 1)) {
    throw new UserError('This token file is damaged (its checksum does not match); copy or encode it again.');
  }
  const codes = new Int32Array(frames * stages);
  let at = 8 * HEADER_BYTES;
  for (let k = 0; k < stages; k++) {
    for (let t = 0; t < frames; t++) {
      let code = 0;
      for (let bit = 0; bit < bits; bit++, at++) code = (code << 1) | ((bytes[at >> 3] >> (7 - (at & 7))) & 1);
      codes[t * stages + k] = code;
    }
  }
  const fingerprint = [...bytes.subarray(29, 37)].map((b) => b.toString(16).padStart(2, '0')).join('');
  return { codes, frames, stages, bits, hop, rate, samples, gainDb, fingerprint };
}

/** Whether bytes begin as a token file does. */
export function isTokenFile(bytes) {
  return bytes.length >= 4 && String.fromCharCode(...bytes.subarray(0, 4)) === 'AFCT';
}

/** The first `stages` stages of codes [frames, all]. */
export function prefix(codes, all, stages) {
  return Int32Array.from({ length: (codes.length / all) * stages },
    (_, i) => codes[Math.floor(i / stages) * all + (i % stages)]);
}
