#!/bin/bash
# Submit a batch and its merge:  submit-batch.sh DIR SOURCE... [options of cxls batch]
#
# DIR is the folder of the batch, on storage that all nodes share. What sbatch takes from the environment holds here
# too: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_ARRAY_INX=0-63 (64 shards), ... Prints the numbers of both jobs.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: submit-batch.sh DIR SOURCE... [options of cxls batch]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1
shift
shards=$(sbatch --parsable "$here/batch.sbatch" "$@" --out "$folder")
shards=${shards%%;*}
# A shard with a file that cannot be read ends with 2, all else of it done; whether something is missing the merge says.
unset SBATCH_ARRAY_INX
merge=$(sbatch --parsable --dependency="afterany:$shards" "$here/merge.sbatch" "$folder")
echo "$shards ${merge%%;*}"
