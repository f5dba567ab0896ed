import json
import os

from larf_curate.server import EmbeddedServer
from larf_curate.server.process import find_process


def test_a_state_file_left_by_a_crash_is_never_taken_for_a_server(tmp_path):
    server = EmbeddedServer(tmp_path, port=0)
    server.home.state.write_text(json.dumps({"pid": os.getpid(), "port": 1}))
    server.home.running_lock.touch()
    assert find_process(server.home) is None
    assert not server.stop()
    assert not server.status().running
