"""The base every configuration derives from: complete, and small enough for a laptop's CPU.

  python -m affectcodec_jax.train --config configs/base.py --workdir runs/base

Two CPU cores, 15 minutes with compilation: mel loss 4.8 at step 10, 1.4 at 300, about 1.3 at the end
(docs/earlier.md).
"""

from ml_collections import ConfigDict


def get_config():
  """Returns the base configuration."""
  c = ConfigDict()
  c.seed = 0
  c.rates = (2, 4, 8)  # active stages at 1.5, 3 and 6 kbps; the last is all of them

  c.model = ConfigDict()
  c.model.backbone = 'dac'  # or 'lite'
  c.model.lite = ConfigDict()  # sizes of that one; encoder_dim and decoder_dim are DAC's
  c.model.lite.width = 256
  c.model.lite.encoder_depth = 4
  c.model.lite.decoder_depth = 6
  c.model.encoder_dim = 16
  c.model.decoder_dim = 256
  c.model.strides = (2, 4, 5, 8)  # of dac; their product is the hop, 320 samples
  c.model.acoustic_width = 256  # encoder's output, d_a'
  c.model.emotion_dim = 64  # d_e
  c.model.acoustic_dim = 192  # d_a
  c.model.num_stages = 8
  c.model.emotion_levels = (2, 2, 2)
  c.model.acoustic_levels = (4, 4, 4, 4, 4, 4)
  c.model.quantizer = 'bd_rfsq'  # or 'full_rfsq', 'rvq'
  c.model.rvq_codebook_dim = 8
  c.model.conditioning = True  # coarse emotion conditioning (FiLM)
  c.model.adapter_dim = 128
  c.model.adapter_layers = 2
  c.model.adapter_kernel = 5
  c.model.compute_dtype = 'float32'  # or 'bfloat16'; the quantiser is float32 always

  c.teacher = ConfigDict()
  c.teacher.kind = 'compact'  # or 'emotion2vec_base', '…_plus_large', 'whisper_tiny', 'whisper_base'
  c.teacher.dim = 160  # width of its features; 768, 1024, 384 and 512 for the others
  c.teacher.depth = 9  # compact: its residual layers
  c.teacher.layer = 3  # whisper: after how many of its blocks
  c.teacher.path = ''  # a safetensors file of it; '' is the compact one in the package
  c.teacher.student = ''  # a student.safetensors for the encoder to read in the teacher's place

  c.discriminator = ConfigDict()
  c.discriminator.n_ffts = (1024, 512, 256)
  c.discriminator.filters = 8

  c.loss = ConfigDict()  # a weight of each term
  c.loss.mel = 15.0
  c.loss.mel_floor = 1e-3  # magnitudes below it count as equal: else silence makes most of the loss
  c.loss.waveform = 1.0
  c.loss.adversarial = 1.0
  c.loss.feature_matching = 2.0
  c.loss.commitment = 5.0  # alpha
  c.loss.emotion = 2.0  # beta
  c.loss.posterior = 0.0  # of emotions by the compact teacher's head, original against emotion block
  c.loss.cycle = 5.0  # lambda
  c.loss.multi_rate = 1.0  # delta: share of mel and cycle at all rates, over that at the clip's; 0: none
  c.loss.pitch = 4.0  # of the lite backbone's decoder, as the next one
  c.loss.voicing = 2.0

  c.data = ConfigDict()
  c.data.source = 'synthetic'  # or 'folder', 'arrayrecord', 'tfds'
  c.data.path = ''  # folder: a directory or a .jsonl manifest; arrayrecord: what `pack` made of one
  c.data.tfds_name = ''
  c.data.tfds_dir = ''
  c.data.train_split = 'train'
  c.data.eval_split = 'valid'
  c.data.num_clips = 2000  # synthetic: clips an epoch
  c.data.min_seconds = 0.3  # shorter files are skipped
  c.data.crop_seconds = 0.48
  c.data.gain_db = 6.0  # random level around the normalised one
  c.data.speed = 0.0  # random speed, e.g. 0.1 for 0.9 to 1.1
  c.data.equalise_db = 0.0  # random gains of six bands, at most so much either way
  c.data.num_workers = 0  # processes; 0 reads in the trainer's own

  c.train = ConfigDict()
  c.train.steps = 1000
  c.train.batch_size = 4  # over all devices
  c.train.accumulate = 1  # pieces of the batch that are computed one after another
  c.train.remat = False  # recompute activations in the backward pass: less memory, a third more time
  c.train.parallel = 'mesh'  # or 'pmap'
  c.train.fsdp = 1  # of a mesh: devices that share one copy of the state
  c.train.lr = 5e-4
  c.train.disc_lr = 3e-4
  c.train.beta1 = 0.8
  c.train.beta2 = 0.99
  c.train.weight_decay = 0.0
  c.train.clip_norm = 1000.0
  c.train.warmup_steps = 50
  c.train.final_lr_fraction = 0.1
  c.train.ema_decay = 0.999
  c.train.adversarial_start = 600  # step at which the discriminator joins
  c.train.stage_dropout = 0.75
  c.train.rate_probs = (0.5, 0.3, 0.2)
  c.train.stage_start = 'spread'  # or 'refine': what stages read at the start, see models/bd_rfsq.py
  c.train.stage_fade = 0.7  # a stage's loudness at the start, over that of the one before it
  c.train.unquantized_steps = 0  # steps without rounding in the quantiser,
  c.train.rounding_steps = 0  # and those in which it sets in
  c.train.true_pitch_steps = 800  # lite: the source has true pitch less and less often, then never
  c.train.decoder_only = False  # the decoder learns, the rest and thus the tokens stay
  c.train.checkpoint_every = 200
  c.train.keep_checkpoints = 3
  c.train.log_every = 10
  c.train.sample_every = 500  # audio and pictures of held-out clips
  c.train.num_samples = 4
  c.train.valid_clips = 16  # held-out crops whose mel loss is logged as often
  c.train.distributed = False  # several processes through jax.distributed
  return c


def emotion_config():
  """What the configurations of an emotion teacher and of a student have in common."""
  base = get_config()
  c = ConfigDict()
  c.seed = 0
  c.model = ConfigDict({'compute_dtype': base.model.compute_dtype})
  c.teacher = base.teacher
  c.data = base.data
  c.train = ConfigDict()
  c.train.batch_size = 32
  c.train.ema_decay = 0.998
  c.train.log_every = 50
  return c
