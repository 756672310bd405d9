"""pgcrypto: the only writer of ``pgp_sym_*`` SQL, and the codec of what stands inside."""
