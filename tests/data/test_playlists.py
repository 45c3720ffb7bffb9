"""Text files that FFmpeg takes for playlists: they must not reach out, to network or files."""

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from av.container import InputContainer

from adamae_jax.data import schema
from adamae_jax.data.video_file import UnreadableVideoError
from adamae_jax.prepare.encode import read_video
from tests.data.videos import make_video

PLAYLISTS = {
    "one": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}/a.ts\n#EXT-X-ENDLIST\n",
    "list of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n{}/a.m3u8\n",
    "concat": "ffconcat version 1.0\nfile '{}/a.ts'\n",
}
# FFmpeg goes by the name, too, before it takes a text for a playlist of HLS, and by what is in
# front of a question mark.
NAMES = ("a.mp4", "a.m3u8?.mp4", "a.m3u8")


class Server:
    """A real one on this machine, which serves a folder.

    Attributes:
        address: of the folder.
        asked: the paths that anybody has asked for.
    """

    def __init__(self, folder: Path):
        self.asked = asked = list[str]()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any):
                super().__init__(*arguments, directory=str(folder))

            def send_head(self) -> Any:
                asked.append(self.path)
                return super().send_head()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    make_video(folder / "a.ts", 5, codec="libx264")
    server = Server(folder)
    (folder / "a.m3u8").write_text(PLAYLISTS["one"].format(server.address))
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def server(serving: Server) -> Server:
    serving.asked.clear()
    return serving


@pytest.mark.parametrize("codec", [schema.CODEC_JPEG, schema.CODEC_ORIGINAL])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_fetch_nothing(
    tmp_path: Path, server: Server, kind: str, name: str, codec: str
) -> None:
    (tmp_path / name).write_text(PLAYLISTS[kind].format(server.address))
    with pytest.raises(UnreadableVideoError, match="cannot be opened"):
        read_video(tmp_path / name, codec)
    assert server.asked == []


class Named(io.BytesIO):
    """A file in memory, with a name by which FFmpeg knows it."""

    def __init__(self, name: str, content: bytes):
        super().__init__(content)
        self.name = name


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("kind", ["one", "list of lists"])
def test_ffmpeg_left_to_itself_would_fetch(server: Server, kind: str, name: str) -> None:
    """It allows all protocols where it reads through this process, as it does for us."""
    content = PLAYLISTS[kind].format(server.address).encode()
    with av.open(Named(f"file:/nowhere/{name}", content), "r") as container:
        assert isinstance(container, InputContainer)
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert server.asked[-1] == "/a.ts"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_reach_no_other_file(tmp_path: Path, kind: str, name: str) -> None:
    """Which may be one outside of what is prepared."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    make_video(outside / "a.ts", 5, codec="libx264")
    (outside / "a.m3u8").write_text(PLAYLISTS["one"].format(f"file:{outside}"))
    inside.mkdir()
    (inside / name).write_text(PLAYLISTS[kind].format(f"file:{outside}"))
    with pytest.raises(UnreadableVideoError, match="cannot be opened"):
        read_video(inside / name)
