"""Sizes of the models that the authors published, which no array tells."""

# Attention heads by (width, depth).
ENCODER_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
DECODER_HEADS = {
    "videomae": {(192, 4): 3, (384, 4): 6, (512, 12): 8, (640, 12): 8},
    "mae": {(512, 8): 16},
    "mae_st": {(512, 4): 16, (512, 8): 16},
}
FRAMES, SIDE = 16, 224  # of a clip
TUBELET_SIZE, PATCH_SIZE = 2, 16
SAMPLER_HEADS = 8
