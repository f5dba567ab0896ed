"""Rows in, ``larf_*`` columns out: the scorer, folders of scored rows, selection and evidence."""
