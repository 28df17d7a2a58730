"""What a recording tells: who waited when and why, what another law would do, a page to look at."""
