"""A device served by a separate process: if the module hangs or crashes, this process goes on."""
