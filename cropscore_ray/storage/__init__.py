"""Files and tables on disks and in object stores, behind one URI."""

from cropscore_ray.storage.disk import FILE_SCHEME as FILE_SCHEME
from cropscore_ray.storage.files import absolute_uri as absolute_uri
from cropscore_ray.storage.files import delete_file as delete_file
from cropscore_ray.storage.files import delete_folder as delete_folder
from cropscore_ray.storage.files import exists as exists
from cropscore_ray.storage.files import file_names_in as file_names_in
from cropscore_ray.storage.files import filesystem as filesystem
from cropscore_ray.storage.files import is_folder as is_folder
from cropscore_ray.storage.files import is_remote as is_remote
from cropscore_ray.storage.files import iter_files as iter_files
from cropscore_ray.storage.files import iter_folders as iter_folders
from cropscore_ray.storage.files import join as join
from cropscore_ray.storage.files import list_files as list_files
from cropscore_ray.storage.files import open_file as open_file
from cropscore_ray.storage.files import persistently as persistently
from cropscore_ray.storage.files import read_bytes as read_bytes
from cropscore_ray.storage.files import read_json as read_json
from cropscore_ray.storage.files import store_of as store_of
from cropscore_ray.storage.files import write_bytes as write_bytes
from cropscore_ray.storage.files import write_json as write_json
from cropscore_ray.storage.tables import read_files as read_files
from cropscore_ray.storage.tables import read_table as read_table
from cropscore_ray.storage.tables import table_files as table_files
from cropscore_ray.storage.tables import table_schema as table_schema
from cropscore_ray.storage.tables import write_table as write_table
