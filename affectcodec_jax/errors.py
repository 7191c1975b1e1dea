"""The one exception a user is meant to read."""


class UserError(Exception):
  """A problem the user can fix: one line that says what is wrong and what to do.

  Commands print it after `error:` and exit with status 2, without a traceback.
  """
