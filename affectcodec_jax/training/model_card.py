"""The README.md of a released codec: metadata that the Hugging Face Hub reads, and how to use the codec."""

from affectcodec_jax.common.constants import FRAME_RATE

_CARD = """\
---
{metadata}
---

# {title}

A 16 kHz speech codec of {rates} kbps that gives emotion bits of its own in every token (Block-Diagonal
Residual FSQ, arXiv 2605.23373), trained with `affectcodec_jax`.

```python
import affectcodec_jax

codec = affectcodec_jax.load('FOLDER')                        # this folder, or org/name of its repository
tokens = codec.encode(audio, sample_rate=16000, kbps={lowest})
speech = codec.decode(tokens)                                 # float32 [samples] at 16 kHz
```

| | |
|---|---|
| backbone, quantiser | `{backbone}`, `{quantizer}`, {stages} stages of {bits} bits at 50 Hz |
| training steps | {step} |
| emotion teacher | `{teacher}` |
| fingerprint | `{fingerprint}`, checked on loading and written into every token file |

| file | what |
|---|---|
{files}

Nothing was measured when this folder was made. Say here what data it was trained on, and what
`affectcodec evaluate --checkpoint FOLDER --data SPEECH --out REPORT` finds.

{licence}
"""

_PACKAGED_TEACHER = """\
## Licence

`teacher.safetensors` is the teacher in the package affectcodec_jax, trained on corpora under CC BY-NC-SA
4.0, which this folder inherits: not for commercial use."""
_OTHER = """\
## Licence

Not said yet: add `license:` to the metadata above, as the training data, the teacher and the codec that
training began from (`--init_from`) allow. The packaged codec is under CC BY-NC-SA 4.0."""

_FILES = {'codec.json': 'configuration, training steps, fingerprint',
          'codec.safetensors': "the codec's parameters, averaged over steps, float16",
          'discriminator.safetensors': 'the discriminator at that step, for training on',
          'teacher.safetensors': 'the emotion teacher',
          'student.safetensors': 'its stand-in in the encoder'}


def text(config, step, fingerprint, files, title, packaged_teacher):
  """The model card.

  Args:
    config: the configuration.
    step: training steps.
    fingerprint: hexadecimal, of the released codec.
    files: names of the files beside the card.
    title: heading.
    packaged_teacher: whether the teacher is that of the package, whose licence then holds.
  """
  from affectcodec_jax.models.codec import bits_per_stage
  bits = bits_per_stage(config.model)
  metadata = ['library_name: affectcodec_jax', 'pipeline_tag: audio-to-audio',
              *(['license: cc-by-nc-sa-4.0'] if packaged_teacher else []),
              'tags:', *(f'- {tag}' for tag in ('audio', 'speech', 'neural-codec', 'emotion', 'jax', 'flax',
                                                'arxiv:2605.23373'))]
  rates = [f'{m * bits * FRAME_RATE / 1000:g}' for m in config.rates]
  return _CARD.format(
      metadata='\n'.join(metadata), title=title, rates=', '.join(rates), lowest=rates[0], step=step,
      backbone=config.model.backbone, quantizer=config.model.quantizer, stages=config.model.num_stages,
      bits=bits, teacher=config.teacher.kind, fingerprint=fingerprint,
      files='\n'.join(f'| `{name}` | {_FILES[name]} |' for name in files),
      licence=_PACKAGED_TEACHER if packaged_teacher else _OTHER)
