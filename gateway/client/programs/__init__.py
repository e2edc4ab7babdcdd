"""The classic commands, through the library only: rftp, rtelnet, rfinger, rwhois."""
