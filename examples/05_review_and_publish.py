"""Have people decide on flagged rows in Argilla, and publish the others.

    larf-curate review up --detach
    python examples/05_review_and_publish.py SELECTION TARGET

SELECTION is the folder that `larf-curate select`, or 04_folders_and_report.py, wrote; TARGET is ORG/NAME on the Hub, or
a folder such as ./curated. With ARGILLA_API_URL and ARGILLA_API_KEY, that server is used instead of this machine's.
Rows on which nobody has decided are neither published nor lost: they stay in decisions/withheld.
"""

import os
import sys

from larf_curate import Selection
from larf_curate.publish import publish
from larf_curate.review import ReviewQueue
from larf_curate.server import EmbeddedServer

selection, target = Selection.load(sys.argv[1]), sys.argv[2]
local = EmbeddedServer()
server = {} if "ARGILLA_API_KEY" in os.environ else {"url": local.status().url, "api_key": local.api_key}

with ReviewQueue("larf-example", **server) as queue:
    pushed = queue.push(selection)  # can be repeated: no answer is lost
    input(f"Decide on the rows at {pushed.url}, then press Enter. ")
    outcome = queue.pull(merge="majority").apply(selection)

outcome.save("decisions")
print({name: count for name, count in outcome.counts.items() if count})
published = publish("decisions", target)
print(f"{published.counts['published']} rows published: {published.url}")
