"""The one schema that every video dataset on disk follows, whatever its source and codec.

A dataset is a directory that ``tfds.builder_from_directory`` opens: ``dataset_info.json``,
``features.json`` and shards (TFRecord or ArrayRecord) of ``tf.train.Example`` with the features
named here. Writers (`adamae_jax.prepare.examples`) and readers (`adamae_jax.data.examples`) meet
only in this file. Image datasets are TFDS's own, and read by the names that most of them share.
"""

ID = "id"  # text: unique within the dataset; for a video file, its path below the source folder
LABEL = "label"  # int64: class index, -1 where the dataset has no labels
FRAMES = "frames"  # bytes: one JPEG per frame; of the other codecs, one video file
CODEC = "codec"  # text: one of CODECS
NUM_FRAMES = "num_frames"  # int64
RATE = "rate"  # float32: frames per second
HEIGHT = "height"  # int64: pixels of the stored frames
WIDTH = "width"  # int64
# Of codecs that store a video file: when each frame is shown, in ticks of the stream (none where
# the file does not say), and the numbers of the frames from which decoding gives what it gives from
# the front. Frame numbers count the frames in the order in which they are shown.
TIMES = "frame_times"  # int64, one per frame or none
KEYFRAMES = "keyframes"  # int64, sorted
# What proves a record without reading all of it: so only those frames are read that a clip needs.
# Checksums are CRC32C (RFC 3720), as they are: not masked as those of TFRecord files.
FRAME_SIZES = "frame_sizes"  # int64: bytes of each value of FRAMES
FRAME_CHECKSUMS = "frame_checksums"  # int64: checksum of each value of FRAMES
HEADER_CHECKSUM = "header_crc32c"  # int64: of the others, see `payload.header_checksum`
# Optional. One grey PNG: the foreground masks of all frames, low resolution, stacked from top to
# bottom ([num_frames * h, w] pixels, 0 background to 255 foreground).
FOREGROUND = "foreground"

# Of image datasets. LABEL, where there is one, and ID are named as those of videos.
IMAGE = "image"  # bytes: a JPEG or PNG
FILE_NAME = "file_name"  # text: names the image where there is no ID

CODEC_JPEG = "jpeg"
CODEC_H264 = "h264"  # re-encoded with few frames between keyframes, in MP4
CODEC_ORIGINAL = "original"  # the source's own file, untouched
CODECS = (CODEC_JPEG, CODEC_H264, CODEC_ORIGINAL)
TFRECORD, ARRAY_RECORD = "tfrecord", "array_record"
FILE_FORMATS = (TFRECORD, ARRAY_RECORD)  # of shards, as TFDS calls them
INTEGER_LISTS = (TIMES, KEYFRAMES, FRAME_SIZES, FRAME_CHECKSUMS)
PREPARED = "prepared by adamae_jax"  # in the description of each dataset that is written here
VERSION = 3  # of this schema: another one cannot be read
UNLABELLED = -1
