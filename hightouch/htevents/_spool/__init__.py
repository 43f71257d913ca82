"""The store on the disk. Imported only by a client with ``spool_dir``."""
