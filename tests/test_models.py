"""Layers, encoder, decoder, spectra, teacher: lengths and independent references."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
import scipy.special
import scipy.stats

from affectcodec_jax import losses, spectral
from affectcodec_jax.emotion.compact import Teacher
from affectcodec_jax.models import source_filter
from affectcodec_jax.models.dac import Decoder, Encoder
from affectcodec_jax.models.layers import Conv, ConvTranspose, folded_conv, sin_squared, whiten
from affectcodec_jax.models.lite import DepthwiseConv, LiteEncoder, autocorrelation, cepstrum

STRIDES = (2, 4, 5, 8)


def test_whitened_convolutions_give_what_they_should():
  """Two of them side by side: zero mean and unit variance a channel, by the new parameters themselves."""
  x = np.random.default_rng(0).normal(size=(3, 50, 6)).astype(np.float32)
  layers = Conv(4, (1,)), Conv(3, (1,))
  params = [layer.init(jax.random.key(i), x)['params'] for i, layer in enumerate(layers)]
  params[0] = params[0] | {'b': jnp.asarray([1.0, -2, 3, 0])}

  def outputs(params):
    return jnp.concatenate([layer.apply({'params': p}, x) for layer, p in zip(layers, params)], axis=-1)

  whitened, expected = whiten(params, outputs(params))
  np.testing.assert_allclose(outputs(whitened), expected, atol=1e-5)
  np.testing.assert_allclose(expected.mean(axis=(0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(expected.std(axis=(0, 1)), 1, atol=1e-4)


@pytest.mark.parametrize('stride', [2, 4, 5, 8])
def test_transposed_convolution_equals_its_definition(stride):
  """Against a scatter by hand in float64; 1e-5 for float32 sums of some tens of terms."""
  x = np.random.default_rng(0).normal(size=(2, 7, 6)).astype(np.float32)
  layer = ConvTranspose(3, stride)
  params = layer.init(jax.random.key(0), x)['params']
  params = params | {'b': jnp.asarray([0.1, -0.2, 0.3])}
  v, g = np.asarray(params['v'], np.float64), np.asarray(params['g'], np.float64)
  w = v / np.sqrt((v ** 2).sum((1, 2), keepdims=True)) * g[:, None, None]  # [in, 2s, out]
  full = np.zeros((2, 8 * stride, 3))
  for t in range(7):
    full[:, t * stride:(t + 2) * stride] += np.einsum('bc,ckf->bkf', x[:, t], w)
  start = (stride + 1) // 2
  expected = full[:, start:start + 7 * stride] + np.asarray(params['b'])
  np.testing.assert_allclose(layer.apply({'params': params}, x), expected, atol=1e-5)


@pytest.mark.parametrize('width, taps, stride, dilation', [
    (33, 9, 1, 1), (33, 9, 2, 1), (17, 9, 2, 4), (8, 3, 1, 1), (3, 9, 2, 2)])
def test_folded_convolution_equals_a_plain_one(width, taps, stride, dilation):
  """Value and both gradients against XLA's convolution; 1e-5 of the largest, float32 sums of 200 terms."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, width, 5)).astype(np.float32)
  w = rng.normal(size=(3, taps, 5, 4)).astype(np.float32)
  target = rng.normal(size=(2, 9, -(-width // stride), 4)).astype(np.float32)

  def plain(x, w):
    pad = ((taps - 1) // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, w, (1, stride), ((dilation, dilation), pad), rhs_dilation=(dilation, 1),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def both(conv):
    grads = jax.grad(lambda x, w: jnp.sum(conv(x, w) * target), (0, 1))(x, w)
    return conv(x, w), *grads

  for a, b in zip(both(lambda x, w: folded_conv(x, w, stride, dilation)), both(plain)):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
  layer = Conv(4, (3, taps), strides=(1, stride), dilation=(dilation, 1))  # which folds on CPU
  params = layer.init(jax.random.key(0), x)
  unit = params['params']['v'] / jnp.linalg.norm(params['params']['v'].reshape(-1, 4), axis=0)
  np.testing.assert_allclose(layer.apply(params, x), plain(x, unit), atol=1e-5)


@pytest.mark.parametrize('module, x', [
    (lambda remat: Encoder(2, (16, 20), 8, remat=remat), np.ones((1, 640), np.float32)),
    (lambda remat: Decoder(32, (20, 16), remat=remat), np.ones((1, 2, 8), np.float32)),
    (lambda remat: LiteEncoder(8, 2, 4, remat=remat), np.ones((1, 3200), np.float32)),
    (lambda remat: source_filter.SourceFilterDecoder(8, 2, remat=remat), np.ones((1, 5, 4), np.float32))])
def test_recomputing_changes_neither_parameters_nor_gradients(module, x):
  """Same names, same numbers; 1e-5 of the largest, because XLA may fuse the second time otherwise."""
  params = [jax.jit(module(remat).init)(jax.random.key(0), x)['params'] for remat in (False, True)]
  jax.tree.map(np.testing.assert_array_equal, *params)

  def loss(p, m):
    return sum(jnp.sum(jnp.square(y)) for y in jax.tree.leaves(m.apply({'params': p}, x)))

  grads = [jax.jit(jax.grad(loss), static_argnums=1)(params[0], module(remat)) for remat in (False, True)]
  largest = max(jnp.abs(g).max() for g in jax.tree.leaves(grads[0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), *grads)


def test_polynomial_sine_squared():
  """Value and gradient against float64 over all activations met in practice."""
  y = np.linspace(-200, 200, 100001, dtype=np.float32)
  exact = np.sin(y.astype(np.float64))
  np.testing.assert_allclose(sin_squared(y), exact ** 2, atol=2e-5)
  grad = jax.vmap(jax.grad(sin_squared))(y)
  np.testing.assert_allclose(grad, np.sin(2 * y.astype(np.float64)), atol=5e-5)


@pytest.mark.parametrize('frames', [1, 2, 3, 10, 51])
def test_lengths(frames):
  """Every multiple of the hop gives exactly samples / 320 frames, and back."""
  audio = jnp.zeros((1, 320 * frames))
  encoder, decoder = Encoder(2, STRIDES, 8), Decoder(32, STRIDES[::-1])
  latent = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), audio)[0])
  assert latent.shape == (1, frames, 8)
  out = jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), jnp.zeros((1, frames, 8)))[0])
  assert out.shape == audio.shape


@pytest.mark.parametrize('window', [32, 512, 2048])
def test_stft_equals_scipy(window):
  """Against scipy's STFT of the padded signal; relative to the largest bin, 1e-5 for float32 sums."""
  x = np.random.default_rng(0).normal(size=6144).astype(np.float32)
  hop = window // 4
  real, imag = spectral.stft(x, window, hop)
  pad = (window - hop) // 2
  padded = np.pad(x, (pad, window - hop - pad), mode='reflect')
  _, _, z = scipy.signal.stft(padded, window='hann', nperseg=window, noverlap=window - hop,
                              boundary=None, padded=False)
  z = z.T * scipy.signal.get_window('hann', window).sum()
  assert real.shape == (6144 // hop, window // 2 + 1)
  np.testing.assert_allclose(np.asarray(real) + 1j * np.asarray(imag), z, atol=1e-5 * abs(z).max())


@pytest.mark.parametrize('window, num_mels', [(32, 5), (512, 80), (1024, 64), (2048, 320)])
def test_mel_filters_are_librosa_s_bit_for_bit(window, num_mels):
  theirs = librosa.filters.mel(sr=16000, n_fft=window, n_mels=num_mels).T
  np.testing.assert_array_equal(spectral.mel_basis(window, num_mels), theirs)


def test_mel_equals_librosa():
  x = np.random.default_rng(0).normal(size=8192).astype(np.float32)
  ours = spectral.mel_spectrogram(x, 1024, 256, 80)
  padded = np.pad(x, 384, mode='reflect')
  theirs = librosa.feature.melspectrogram(y=padded, sr=16000, n_fft=1024, hop_length=256, n_mels=80,
                                          center=False, power=1.0).T
  np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.max())


def test_losses_have_finite_gradients_on_silence():
  """Digital silence is the classic NaN of log and sqrt."""
  zero = jnp.zeros((1, 4096))
  target = losses.mel_targets(zero)
  grad = jax.grad(lambda x: losses.mel_distance(losses.mel_targets(x), target).sum())(zero)
  assert np.isfinite(np.asarray(grad)).all()


def test_emotion_losses_by_hand():
  a, b = np.random.default_rng(0).normal(size=(2, 2, 5, 3)).astype(np.float32)
  cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  np.testing.assert_allclose(losses.emotion_cycle(a, b), (1 - cosine).mean(-1), rtol=1e-5)
  np.testing.assert_allclose(losses.emotion_l2(a, b), ((a - b) ** 2).mean((1, 2)), rtol=1e-5)
  np.testing.assert_allclose(losses.emotion_cycle(a, a), 0, atol=1e-5)
  p, q = (scipy.special.softmax(x[:, 0], axis=-1) for x in (a, b))
  divergence = losses.emotion_posterior(b[:, 0], a[:, 0])
  np.testing.assert_allclose(divergence, scipy.stats.entropy(p, q, axis=-1), rtol=1e-4)
  np.testing.assert_allclose(losses.emotion_posterior(a[:, 0], a[:, 0]), 0, atol=1e-6)
  assert (np.asarray(jax.grad(lambda x: losses.emotion_posterior(b[:, 0], x).sum())(a[:, 0])) == 0).all()


@pytest.mark.parametrize('frames', [1, 2, 7, 50])
def test_teacher_frames_match_the_codec_and_carry_gradients(frames):
  audio = jax.random.normal(jax.random.key(0), (2, 320 * frames)) * 0.1
  model = Teacher(8)
  params = model.init(jax.random.key(1), audio, jnp.ones((2, frames), bool))

  def total(audio):
    features = model.apply(params, audio, method=Teacher.features)
    assert features.shape == (2, frames, 8)
    return (features * jnp.arange(8)).sum()

  grad = np.asarray(jax.grad(total)(audio))
  assert np.isfinite(grad).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize('window, hop', [(1280, 320), (960, 320), (512, 128), (640, 320)])
def test_inverse_stft_inverts(window, hop):
  audio = np.random.default_rng(0).normal(size=(2, 20 * hop)).astype(np.float32)
  again = spectral.istft(*spectral.stft(audio, window, hop), window, hop)
  np.testing.assert_allclose(again, audio, atol=1e-5)


@pytest.mark.parametrize('window', [32, 960, 1280])
def test_fft_and_matmul_transforms_are_one(window):
  """Relative to the largest bin: float32 sums of `window` terms in different orders."""
  frames = np.random.default_rng(0).normal(size=(3, window)).astype(np.float32)
  by_fft, by_matmul = spectral.dft_by_fft(frames, 0.5), spectral.dft_by_matmul(frames, 0.5)
  for a, b in zip(by_fft, by_matmul):
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max() * np.sqrt(window))
  a, b = (f(*by_fft, window) for f in (spectral.inverse_by_fft, spectral.inverse_by_matmul))
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('frames', [1, 2, 7, 50])
def test_lite_networks_keep_every_length(frames):
  audio = 0.1 * jax.random.normal(jax.random.key(0), (2, 320 * frames))
  encoder, decoder = LiteEncoder(16, 2, 12), source_filter.SourceFilterDecoder(16, 2)
  latent, _ = encoder.init_with_output(jax.random.key(1), audio)
  assert latent.shape == (2, frames, 12)
  params = decoder.init(jax.random.key(2), latent)

  def decode(latent):
    controls = decoder.apply(params, latent)
    increments = source_filter.predicted_increments(controls.pitch)
    return source_filter.render(controls, source_filter.beginning(increments))

  out = decode(latent)
  assert out.shape == (2, 320 * frames) and np.isfinite(np.asarray(out)).all()
  grad = jax.grad(lambda z: (decode(z) ** 2).sum())(latent)
  assert np.isfinite(np.asarray(grad)).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize('window', [320, 1280])
def test_cepstrum_and_autocorrelation_equal_numpy_s(window):
  """Inverse FFTs of log magnitude and of power, in float64; a matmul of 641 float32 products, so 1e-4."""
  x = np.random.default_rng(0).normal(size=(5, window))
  power = np.abs(np.fft.rfft(x)) ** 2
  want = np.fft.irfft(0.5 * np.log10(power))[:, :min(320, window // 2)]
  usual = np.concatenate([[0.75], 0.2 * np.arange(1, want.shape[1]) ** -0.6 + 0.01])
  np.testing.assert_allclose(cepstrum(jnp.asarray(power, jnp.float32)), want / usual, atol=1e-4)
  if window == 1280:
    want = np.fft.irfft(power)
    found = autocorrelation(jnp.asarray(power, jnp.float32))
    np.testing.assert_allclose(found, want[:, 24:320] / want[:, :1], atol=1e-4)


def test_depthwise_conv_equals_a_grouped_one():
  x = jax.random.normal(jax.random.key(0), (2, 11, 6))
  out, params = DepthwiseConv(7).init_with_output(jax.random.key(1), x)
  w = params['params']['kernel'][:, None]  # [7, 1, 6]
  want = jax.lax.conv_general_dilated(x, w, (1,), [(3, 3)], feature_group_count=6,
                                      dimension_numbers=('NWC', 'WIO', 'NWC'))
  np.testing.assert_allclose(out, want, atol=1e-5)
