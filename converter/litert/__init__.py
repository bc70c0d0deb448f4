"""The LiteRT spelling: graphs as TFLite, sections, metadata, one .litertlm file."""
