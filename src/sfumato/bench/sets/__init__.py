"""``sfumato bench sets``: sets of images that should agree, measured on worlds in which it is known how."""
