.PHONY: install lint types quick docs test

install: ; pip install -e ".[cpu,train,demo,dev,docs]" && pre-commit install
lint: ; ruff check . && ruff format --check . && deptry .
types: ; mypy && lint-imports
quick: ; pytest -m "not server and not browser and not slow" -n auto --dist loadfile
docs: ; mkdocs serve
test: ; .ci/run
