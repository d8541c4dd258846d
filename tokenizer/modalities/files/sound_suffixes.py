"""Suffixes of sound files: those that are read here, and those that have to be converted first.

Light to import: neither soundfile nor its library is loaded. Left out: what a file really is, which its
first bytes say (`sound_files.py`).
"""

# What libsndfile 1.2 reads. Left out of its formats: those without a header (.raw, .pcm, .vox, .gsm), those
# that are not for sound alone (.mat, .iff), and Sound Designer II, whose header lies in another file.
SOUND_SUFFIXES: frozenset[str] = frozenset(
    (
        *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".amb"),
        *(".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
        *(".flac", ".ogg", ".oga", ".opus"),
        *(".mp1", ".mp2", ".mp3", ".mpga"),
        *(".sph", ".nist", ".htk", ".voc", ".ircam", ".sf"),
        *(".8svx", ".svx", ".avr", ".paf", ".pvf", ".sds", ".wve", ".xi"),
    )
)

# What takes FFmpeg, by the fix.
SOUND_UNREADABLE: dict[str, str] = {
    suffix: f"convert with: ffmpeg -i X{suffix} X.wav"
    for suffix in (
        *(".m4a", ".m4b", ".m4r", ".mp4", ".mov", ".3gp", ".aac", ".adts"),
        *(".webm", ".weba", ".mkv", ".mka", ".avi", ".wma", ".asf", ".ra", ".rm"),
        *(".amr", ".awb", ".spx", ".ac3", ".eac3", ".dts", ".qcp"),
        *(".ape", ".wv", ".tta", ".tak", ".mpc", ".shn", ".dsf", ".dff"),
    )
}
