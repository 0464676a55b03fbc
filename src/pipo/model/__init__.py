"""What a PIPO model is: config, compressor, backbone, MTP head, confidence head, losses."""
