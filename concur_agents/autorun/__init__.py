"""Everything behind `concur run`: it governs a program without a change to its code."""
