"""Annotators' responses, merged into one decision per row and applied to the selection.

A corrected answer is put into its row by `larf_curate.conversation.answers.replace_answer`.
"""
