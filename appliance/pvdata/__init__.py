"""PVData: types, values, bit sets, compiled codecs, pvRequest, normative types and text. Pure."""
