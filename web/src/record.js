// The microphone, as it is: without the browser's echo cancelling, noise removal and levelling.

import { UserError } from './errors.js';

/**
 * Starts recording.
 * @returns {Promise<() => Promise<Uint8Array>>} stops and gives the bytes of the recording.
 * @throws {UserError} no microphone, or no leave to use it.
 */
export async function startRecording() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 },
    });
  } catch (error) {
    throw new UserError(error.name === 'NotAllowedError'
      ? 'The browser does not allow the microphone; allow it for this page, or choose a file.'
      : 'There is no microphone to record from; choose a file.');
  }
  const release = () => stream.getTracks().forEach((track) => track.stop());
  const parts = [];
  let recorder;
  try {
    recorder = new MediaRecorder(stream, { audioBitsPerSecond: 256000 });
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.start();
  } catch {
    release();
    throw new UserError('The browser cannot record from this microphone; choose a file.');
  }
  const stopped = new Promise((resolve) => { recorder.onstop = resolve; });
  return async () => {
    recorder.stop();
    await stopped;
    release();
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  };
}
