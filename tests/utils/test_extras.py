import pytest

from d2go_fbnetv5.utils.errors import InputError
from d2go_fbnetv5.utils.extras import require_extra


@pytest.mark.parametrize(
    ("module", "extra", "line"),
    [("no_such_module", "some", r"'d2go_fbnetv5\[some\]'"), ("no_such.part", "", "no_such")],
)
def test_a_missing_package_is_one_sentence_with_pips_line(module, extra, line):
    with pytest.raises(InputError, match=rf"^model 'x' needs {module}: pip install {line} \("):
        require_extra("model 'x'", module, extra)


def test_a_module_that_is_there_is_imported():
    assert require_extra("a test", "os.path", "some").sep == "/"
