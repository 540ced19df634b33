"""`ttreg explore`: a local page to try interventions by hand."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ttreg_interp.errors import DataError, UnsupportedModelError

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Explore:
    """Open a page on which an image, a model and an intervention are chosen by hand.

    It is served to this machine only, unless --host says otherwise.
    """

    model: str = "testbed:planted"
    """The model to begin with."""
    neurons: Path | None = None
    """Its neurons: a file from `ttreg find`, or a published list."""
    host: str = "127.0.0.1"
    """Address to serve at. Any but 127.0.0.1 lets other machines in; they may then not load models."""
    port: int = 7860
    """Port to serve at."""
    browser: bool = False
    """Open a browser, too."""

    def run(self) -> int:
        """Serve until interrupted."""
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        try:
            from ttreg_interp.app.page import STYLE, THEME, build
        except ModuleNotFoundError as error:
            raise UnsupportedModelError(
                f"`ttreg explore` needs the package {error.name!r}, which is not installed: "
                "pip install 'ttreg-interp[app]'."
            ) from None
        from ttreg_interp.app.session import Explorer
        from ttreg_interp.app.upload import MAX_MEGABYTES

        explorer = Explorer(self.model, self._neurons(), may_load=self.host in LOCAL)
        explorer.model(self.model)  # says what is wrong with it before a page opens
        sys.stdout.write(f"Serving at http://{self.host}:{self.port}; Ctrl-C stops.\n")
        try:
            build(explorer).launch(
                server_name=self.host,
                server_port=self.port,
                inbrowser=self.browser,
                share=False,
                quiet=True,
                ssr_mode=False,
                max_file_size=MAX_MEGABYTES * 1_000_000,
                theme=THEME,
                css=STYLE,
                footer_links=[],
            )
        except OSError as error:
            raise DataError(f"Cannot serve at {self.host}:{self.port}: {error}") from None
        return 0

    def _neurons(self):
        from ttreg_interp.discovery import RegisterNeurons

        return None if self.neurons is None else RegisterNeurons.load(self.neurons).neurons
