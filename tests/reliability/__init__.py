"""What a server endures: probes that count trials and failures, in short for every change, for hours in `make soak`."""
