"""One module for each verb: settings in, result out."""
