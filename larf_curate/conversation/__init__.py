"""Dataset rows as conversations: message schemas, chat templates, answers, refusals and training rows."""
