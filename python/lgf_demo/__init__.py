"""The demonstration behind `lgf demo`; start reading at `main.demonstrate`."""
