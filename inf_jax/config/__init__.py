from inf_jax.config.command_line import (
    ReadLog as ReadLog,
)
from inf_jax.config.command_line import (
    check_all_read as check_all_read,
)
from inf_jax.config.command_line import (
    check_same_run as check_same_run,
)
from inf_jax.config.command_line import (
    command_line as command_line,
)
from inf_jax.config.command_line import (
    defaults as defaults,
)
from inf_jax.config.command_line import (
    parse as parse,
)
from inf_jax.config.command_line import (
    parse_flags as parse_flags,
)
from inf_jax.config.command_line import (
    run as run,
)
from inf_jax.config.command_line import (
    save_resolved as save_resolved,
)
