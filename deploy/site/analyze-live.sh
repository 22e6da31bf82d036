#!/bin/sh
# Live analysis of $DETECTOR into a new folder of $DATA: a start, and a detector that counts its series from 1 again, meets
# no records of before. Only where the last run was killed since this machine started, it goes on in that run's folder:
# the note that the killed run left is there (docs/crashes.md). Further options of `cxls analyze` may follow.
set -eu
: "${DATA:?a folder for results}" "${DETECTOR:?the address of the detector, such as tcp://192.0.2.10:31001}"
up_min=$(($(cut -d . -f 1 /proc/uptime) / 60 + 1))
last=$(find "$DATA" -mindepth 1 -maxdepth 1 -type d -name '*Z' | sort | tail -n 1)
if [ -n "$last" ] && [ -n "$(find "$last" -maxdepth 1 -name .results.parquet.running -mmin "-$up_min")" ]; then
    folder=$last
    set -- --append "$@"
else
    folder="$DATA/$(date -u +%Y%m%dT%H%M%SZ)"
    mkdir "$folder"
fi
exec cxls analyze "$DETECTOR" \
    --results "$folder/results.parquet" --hits "$folder/hits" --products "$folder/products" "$@"
