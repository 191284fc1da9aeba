"""The front end process: receives, checks, decodes, preprocesses, postprocesses and replies, over gRPC."""
