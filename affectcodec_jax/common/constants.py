"""What every part of the codec agrees on."""

SAMPLE_RATE = 16000  # Hz, of all audio inside the codec
HOP_LENGTH = 320  # samples a frame
FRAME_RATE = SAMPLE_RATE // HOP_LENGTH  # 50 frames a second
PIECE_FRAMES = 1000  # of a long recording, computed at once: 20 s
LOWEST_PITCH, HIGHEST_PITCH = 55.0, 600.0  # Hz, of the voices that are tracked and synthesised
