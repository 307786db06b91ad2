import pytest

pytest.register_assert_rewrite("tests.rollout.contract")  # no test module, but it holds tests
