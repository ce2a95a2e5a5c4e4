"""One plan counted by many processes and hosts of one site, over Dask; docs/SCALE.md."""
