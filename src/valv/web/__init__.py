"""The portal: server-rendered pages that work without JavaScript. Pages call the use cases directly."""
