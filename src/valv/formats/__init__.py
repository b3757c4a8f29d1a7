"""Pure codecs: bytes in, values out. No file, socket or clock."""
