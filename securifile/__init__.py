"""SecuriFile: a highly available, distributed, encrypted file store."""

__version__ = "0.1.0"
