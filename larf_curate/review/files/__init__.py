"""Review by files, without a server: flagged rows go out as a table or a page, decisions come back as files.

Decisions take the path that those of Argilla take: `ReviewedRecord`, `merge_records`, `Decisions.apply`.
"""
