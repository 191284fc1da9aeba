"""The files of deploy/, tried with the programs that they are written for."""
