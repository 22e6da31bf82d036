#!/bin/sh
# Live analysis of $DETECTOR into a new folder of $DATA: a restart, and a detector that counts its series from 1 again,
# meets no records of before. Further options of `cxls analyze` may follow.
set -eu
folder="${DATA:?a folder for results}/$(date -u +%Y%m%dT%H%M%SZ)"
mkdir "$folder"
exec cxls analyze "${DETECTOR:?the address of the detector, such as tcp://192.0.2.10:31001}" \
    --results "$folder/results.parquet" --hits "$folder/hits" --products "$folder/products" "$@"
