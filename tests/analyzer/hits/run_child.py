"""A child process of the tests of hits: takes hits for ever, until it is killed; or under a limit on file sizes.

run_child.py DIR forever | run_child.py DIR limit BYTES HITS
"""

import resource
import sys
import time
from pathlib import Path

from analyzer.hits import HitFolder, HitFolderSettings
from tests.analyzer.hits.made import hit, write


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
        output = write(folder, [hit(n) for n in range(int(sys.argv[4]))], HitFolderSettings(journal_hits=1000))
        print(output.written, output.lost["disk"], output.unfinished)
        return
    output, number = HitFolder(folder, HitFolderSettings(journal_hits=7, journal_s=0.2)), 0
    while True:
        output.offer(*hit(number))
        number += 1
        while output.facts()["waiting"] > 50:
            time.sleep(0.001)
        # What is neither in the queue nor lost is in the journal or in a file: it must survive.
        print(number - int(output.facts()["waiting"]), flush=True)


if __name__ == "__main__":
    main()
